"""The pages of the documentation that the code writes itself."""
