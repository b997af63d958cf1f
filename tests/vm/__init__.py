"""`make vm-test`: the project on the kernels that distributions ship, each in a virtual machine of its own.

A machine is a distribution's own kernel and a root file system made from that distribution's packages, with this
checkout in the home of a user who has sudo, prepared by the same script that provisions the Vagrant box. It has no
network. What is to be run in it, and what came of it, passes through a second disk.

Modules: `systems` (which distributions and kernels), `rootfs` (their disk images), `initramfs`, `machine` (qemu),
`steps` (what is run), `results` (table and JUnit), `guest/` (what runs inside), `__main__` (the command).
"""
