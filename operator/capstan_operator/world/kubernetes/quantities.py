"""Amounts as Kubernetes itself writes them, so that what comes back equals what was sent. Pure."""


def cpu(millicores: int) -> str:
    """1500 is `1500m`, 2000 is `2`."""
    return f"{millicores}m" if millicores % 1000 else str(millicores // 1000)


def memory(mebibytes: int) -> str:
    """Mebibytes in the largest binary unit that needs no fraction: 4096 is `4Gi`, 1500 is `1500Mi`."""
    for unit in ("Mi", "Gi", "Ti"):
        if mebibytes % 1024 or not mebibytes:
            return f"{mebibytes}{unit}"
        mebibytes //= 1024
    return f"{mebibytes}Pi"
