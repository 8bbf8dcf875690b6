"""The server beneath the application: uvicorn's listeners, connections and their limits."""
