"""A user's own reward that an untrained model earns now and then: some groups have signal, some have none."""

import zlib


def rare(prediction: str, example) -> float:
    return float(zlib.crc32(f"{example.id} {prediction}".encode()) % 8 == 0)
