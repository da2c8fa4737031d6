"""The vLLMs of this machine: finding one for a deployment, and provisioning the CPU build."""
