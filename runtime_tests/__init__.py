"""The verification library behind ``edgeqaf verify``: probes, the ladder, and one file per runtime."""
