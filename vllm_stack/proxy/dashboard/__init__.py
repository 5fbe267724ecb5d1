"""The dashboard of the admin door: one page, and what it asks for."""
