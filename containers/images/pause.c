/* The first process of a pod: it holds the pod's network while containers come and go, and does nothing else.
 *
 * Reaps whatever becomes its child, ends on SIGTERM and SIGINT. No C library: some 1 kB, started in no time, and built
 * by clang alone. Signals are blocked and waited for, since the kernel drops unblocked ones without a handler for the first
 * process of a PID namespace.
 */

#ifndef __x86_64__
#error "pause is written for x86-64, as the rest of p4ferry"
#endif

enum { SYS_RT_SIGPROCMASK = 14, SYS_WAIT4 = 61, SYS_RT_SIGTIMEDWAIT = 128, SYS_EXIT_GROUP = 231 };
enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, WNOHANG = 1 };

#define BIT(number) (1UL << ((number) - 1))

static long call(long number, long one, long two, long three, long four)
{
    register long fourth __asm__("r10") = four;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(one), "S"(two), "d"(three), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
}

__attribute__((noreturn, used)) static void run(void)
{
    unsigned long waited_for = BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGCHLD);
    call(SYS_RT_SIGPROCMASK, SIG_BLOCK, (long)&waited_for, 0, sizeof waited_for);
    for (;;) {
        long signal = call(SYS_RT_SIGTIMEDWAIT, (long)&waited_for, 0, 0, sizeof waited_for);
        if (signal == SIGCHLD)
            while (call(SYS_WAIT4, -1, 0, WNOHANG, 0) > 0)
                ;
        else if (signal > 0)
            call(SYS_EXIT_GROUP, 0, 0, 0, 0);
    }
}

/* The kernel starts a program with a 16-byte aligned stack and no return address. */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tcall run\n");
