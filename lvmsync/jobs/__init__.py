"""What lvmsync does: plain blocking code that joins sources, streams, transports and targets."""
