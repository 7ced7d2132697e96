"""Properties of GPUs that the kernels depend on, for GPUs that are not there."""

# Compute capability -> most bytes of shared memory per program (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability").
SHARED_MEMORY = {
    75: 64 * 1024,
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
# Compute capability -> processors (SMs) of cards in data centres and of the largest others.
PROCESSORS = {
    75: (40,),  # T4
    80: (56, 108),  # A30, A100
    86: (72, 80, 82, 84),  # A10, A10G, RTX 3090, A40 and RTX A6000
    89: (58, 128, 142),  # L4, RTX 4090, L40S and L40 and RTX 6000 Ada
    90: (114, 132),  # H100 PCIe; H100 SXM and NVL, H200, GH200
    100: (148,),  # B200
    120: (170, 188),  # RTX 5090, RTX PRO 6000
}
