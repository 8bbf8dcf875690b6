"""The messages between the processes: plain data, as msgpack over Unix sockets, one file for each receiver;
and the layout of the shared memory that holds the pixels."""
