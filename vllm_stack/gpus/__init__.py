"""The GPUs of this machine: what the driver tells, what the user's mask leaves, which worker gets which."""
