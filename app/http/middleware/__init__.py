"""What surrounds every request: ASGI middleware, one purpose a file.

Whoever has nothing to do after the answer is a plain function that gives back what the next one does: a
coroutine for each would be made, and gone through at every step of every request.
"""
