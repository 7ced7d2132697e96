"""What every stage of a request may use: cancellation, the device lock, memory, timings."""
