"""The Triton kernels of the operations, a module each; `visionattn.ops` imports them when they are wanted."""
