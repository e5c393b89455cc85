"""The scheduler: decides what each step computes, and keeps the book of KV blocks. Pure: no tensors, clock or I/O."""
