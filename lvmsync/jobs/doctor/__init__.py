"""What is wrong on a machine, or will be soon, each with the command that mends it. Nothing is changed here."""
