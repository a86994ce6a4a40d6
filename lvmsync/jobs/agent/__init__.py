"""lvmsync on two machines, over one line: who asks is the client, who serves is the agent. See docs/agent.md."""
