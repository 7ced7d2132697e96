"""httpx for servers without TLS, however long they take.

By default httpx gives up after 5 s, and loads all root certificates for each request, which takes
25 ms.
"""

from functools import partial

import httpx

OPTIONS = {"verify": False, "timeout": None}
get, post, put = (partial(send, **OPTIONS) for send in (httpx.get, httpx.post, httpx.put))
request = partial(httpx.request, **OPTIONS)


def health(url):
    """The status of the Cog server at a URL, such as "READY"."""
    return get(f"{url}/health-check").json()["status"]
