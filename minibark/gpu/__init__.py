"""What makes a GPU fast: steps recorded in CUDA graphs, and the Triton kernels in them."""
