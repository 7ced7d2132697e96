"""Several Cog servers behind one address, managed by Ray Serve.

`replica` runs one server, `gate` is the HTTP proxy that sends each prediction to a server, and
`application` configures both for Ray. Independent of the models.
"""
