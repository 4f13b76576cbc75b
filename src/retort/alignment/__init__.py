"""GMM-HMM alignment from a flat start."""
