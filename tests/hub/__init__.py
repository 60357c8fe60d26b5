"""A Hub on loopback, and the tests of what the program sends to one."""
