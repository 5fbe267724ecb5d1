"""What options and the machine become: who gets which GPUs, and what every program is started with."""
