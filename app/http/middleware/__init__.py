"""The ASGI middleware around every request, one purpose per file.

Middleware that does nothing after the answer is a plain function that returns the result of the next one: a
coroutine for each would have to be created, and entered at every step of every request.
"""
