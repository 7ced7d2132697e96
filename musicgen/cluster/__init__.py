"""Many Cog servers behind one address, kept by Ray Serve.

`replica` keeps one server, `gate` speaks HTTP and sends each prediction to one of them,
`application` says both to Ray. Nothing here knows what a prediction computes.
"""
