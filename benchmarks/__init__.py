"""How fast decoding is, against the machine's memory and against other implementations.

`work` says what is decoded, `systems` who decodes it, `measure` how that is timed, `machine`
what the hardware can do, `report` prints and saves it, `callers` asks a real server.
"""
