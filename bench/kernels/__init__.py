"""The ops alone, against plain PyTorch and the peers."""
