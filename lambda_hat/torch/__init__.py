"""Networks of PyTorch: `from_torch` makes a loss of JAX from a module. Torch itself is imported on first use."""

from lambda_hat.torch.module_loss import TorchLoss, from_torch

__all__ = ["TorchLoss", "from_torch"]
