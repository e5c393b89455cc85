"""Few distinct numbers of rows, so that one CUDA graph serves many batches."""


def round_up(num_tokens: int) -> int:
    """1, 2, 4, then multiples of eight, which is also what the matrix units like."""
    if num_tokens <= 2:
        return num_tokens
    return 4 if num_tokens <= 4 else -(-num_tokens // 8) * 8
