"""What every stage of a request may use: cancellation, the device thread, memory, timings."""
