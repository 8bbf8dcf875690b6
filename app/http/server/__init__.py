"""The server below the application: uvicorn's listeners, connections and their limits."""
