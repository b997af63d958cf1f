"""How a program's memory and image files get from its source to its destination.

    modes.py       which ways there are, and which one a program takes
    link.py        a connection between two hosts over the management network
    wire.py        image files over that connection, in batches
    early.py       image files that go ahead while the dump goes on
    closings.py    hearing of files that are complete
    pageserver.py  CRIU's page server at the destination: memory pages while the program is frozen
    precopy.py     memory pages while the program still runs, round by round
    lazy.py        memory pages after the program runs at its destination
    carrier.py     what a passage sees of all this

Two questions are independent. *Mode* says when pages move: in the freeze (stop), before it (pre), after it
(lazy). *Via* says where: over the network, or through the folder that all hosts of the machine share.
"""
