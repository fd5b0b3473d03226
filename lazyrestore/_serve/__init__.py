"""Serving other processes: `lazyrestore serve`.

    service.py     the service: an asyncio loop; who is admitted, what is refused, what ends when
    connection.py  a connection until its handshake is whole
    handshake.py   Firecracker's handshake: from text to ranges (pure functions)
    peer.py        a process that is served: its descriptors, its C session, its end
    images.py      the images that are served, and what is loaded first of them
    events.py      what is said on standard error, without waiting for who reads it
    figures.py     what is counted, of each peer and of all; status.py and metrics.py tell it

Faults are served by a C thread for each peer; nothing here runs between a touch and its page.
"""
