// Loaded into CRIU with preload.c: writes down what CRIU is about to change in the threads of a program that it dumps, so that
// guard.py can put it back when CRIU is killed. The file $P4FERRY_UNDO is a `struct log`; see guard.py, which reads it.
//
// CRIU lets the threads execute code of its own: it sets their registers and signal masks, and writes a few words of code into
// them. Before the first of each of these changes to a thread, what was there is noted; it holds until CRIU detaches the thread.
//
// A thread that goes on after a stop, and was in poll(2), nanosleep(2) or futex(2) with a time-out, goes on by restart_syscall(2).
// Few seccomp filters know of that: sshd's kills whoever logs in. Such a thread makes its call anew instead.
#include <asm/unistd.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#define NEXT ((void *)-1L) // RTLD_NEXT of <dlfcn.h>
// <linux/ptrace.h>, <linux/elf.h>, <asm-generic/mman-common.h>, <asm/signal.h>
#define PEEKDATA 2
#define POKETEXT 4
#define POKEDATA 5
#define SETREGS 13
#define CONT 7
#define DETACH 17
#define SYSCALL 24
#define GETSIGINFO 0x4202
#define GETREGSET 0x4204
#define SETREGSET 0x4205
#define SEIZE 0x4206
#define GETSIGMASK 0x420a
#define SETSIGMASK 0x420b
#define SECCOMP_GET_METADATA 0x420d
#define RESTART_BLOCK 516 // ERESTART_RESTARTBLOCK of the kernel's own errno.h
#define SYSCALL_CODE 0x050f
#define NT_PRSTATUS 1
#define PROT_READ_WRITE 3
#define MAP_SHARED 1
#define SIGTRAP 5
#define SIGCHLD 17
#define SI_KERNEL 0x80
#define MARKED_TRAP (SIGTRAP | 0x80)
#define WALL 0x40000000
#define SA_NOCLDSTOP 1UL

#define THREADS 8192
#define WORDS 4096
#define REGISTERS 488

struct thread {
	uint32_t tid, size, has_mask, is_in_call;
	uint64_t mask;
	unsigned char registers[REGISTERS];
};

struct word {
	uint32_t tid, is_set;
	uint64_t address, value, unused;
};

struct log {
	struct word words[WORDS];
	struct thread threads[THREADS];
};

struct part {
	void *start;
	size_t size;
};

struct info { // of siginfo_t
	int signal, error, code;
};

struct action {
	void *handler;
	unsigned long flags;
	void *restorer;
	uint64_t mask;
};

void *dlsym(void *handle, const char *name);
char *getenv(const char *name);
long syscall(long number, ...);

static struct log *undo;
static unsigned int words;

static long next(long request, long tid, void *address, void *data)
{
	static long (*actual)(long request, ...);

	if (actual == NULL)
		actual = (long (*)(long, ...))dlsym(NEXT, "ptrace");
	return actual(request, tid, address, data);
}

// A stop of a thread is no reason to interrupt CRIU, which waits for it; traced itself it would stand still for each such signal.
static void leave_stops_alone(void)
{
	struct action action = {.flags = SA_NOCLDSTOP};

	syscall(__NR_rt_sigaction, SIGCHLD, &action, NULL, sizeof(action.mask));
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("P4FERRY_UNDO");
	long fd, place;

	if (path == NULL || (fd = syscall(__NR_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0)) < 0)
		return;
	place = syscall(__NR_mmap, NULL, sizeof(struct log), PROT_READ_WRITE, MAP_SHARED, fd, 0);
	syscall(__NR_close, fd);
	if (place == -1)
		return;
	undo = (struct log *)place;
	leave_stops_alone();
}

// Return the entry of a thread, a new one if it has none; NULL if there is no room.
static struct thread *entry_of(uint32_t tid)
{
	for (unsigned int turn = 0; turn < THREADS; turn++) {
		struct thread *entry = &undo->threads[(tid + turn) % THREADS];

		if (entry->tid == 0)
			entry->tid = tid;
		if (entry->tid == tid)
			return entry;
	}
	return NULL;
}

static void keep_registers(long tid)
{
	struct thread *entry = entry_of((uint32_t)tid);
	struct part part;

	if (entry == NULL || entry->size != 0)
		return;
	part.start = entry->registers;
	part.size = sizeof(entry->registers);
	if (next(GETREGSET, tid, (void *)NT_PRSTATUS, &part) == 0)
		__atomic_store_n(&entry->size, (uint32_t)part.size, __ATOMIC_RELEASE);
}

static void keep_mask(long tid)
{
	struct thread *entry = entry_of((uint32_t)tid);

	if (entry == NULL || entry->has_mask)
		return;
	if (next(GETSIGMASK, tid, (void *)sizeof(entry->mask), &entry->mask) == 0)
		__atomic_store_n(&entry->has_mask, 1, __ATOMIC_RELEASE);
}

static void keep_word(long tid, void *address)
{
	struct word *word;

	for (unsigned int at = 0; at < words; at++)
		if (undo->words[at].tid == (uint32_t)tid && undo->words[at].address == (uint64_t)address)
			return;
	if (words == WORDS)
		return;
	word = &undo->words[words++];
	word->tid = (uint32_t)tid;
	word->address = (uint64_t)address;
	word->value = (uint64_t)next(PEEKDATA, tid, address, NULL);
	__atomic_store_n(&word->is_set, 1, __ATOMIC_RELEASE);
}

static void forget(long tid)
{
	struct thread *entry = entry_of((uint32_t)tid);

	if (entry != NULL)
		entry->size = entry->has_mask = 0;
	for (unsigned int at = 0; at < words; at++)
		if (undo->words[at].tid == (uint32_t)tid)
			undo->words[at].is_set = 0;
}

#ifdef __x86_64__
struct registers { // struct user_regs_struct
	uint64_t before[10], result, arguments[4], call, place, after[10];
};

static int get_registers(long tid, struct registers *registers)
{
	struct part part = {registers, sizeof(*registers)};

	return next(GETREGSET, tid, (void *)NT_PRSTATUS, &part) == 0 && part.size == sizeof(*registers);
}
#endif

// CRIU makes a thread execute `syscall; int3`. A thread that has met the breakpoint when CRIU dies, before CRIU has heard of it,
// dies of it. So it stops at the end of the system call instead; CRIU is told of a breakpoint.
static int is_injected_call(long tid)
{
#ifdef __x86_64__
	struct registers registers;

	return get_registers(tid, &registers) &&
	       ((uint64_t)next(PEEKDATA, tid, (void *)registers.place, NULL) & 0xffffff) == 0xcc050f;
#else
	(void)tid;
	return 0;
#endif
}

static long run_call(long tid)
{
	struct thread *entry = entry_of((uint32_t)tid);
	int status;

	if (entry == NULL)
		return next(CONT, tid, NULL, NULL);
	if (next(SYSCALL, tid, NULL, NULL) != 0)
		return -1;
	syscall(__NR_wait4, tid, &status, WALL, NULL); // it begins
	entry->is_in_call = 1;
	return next(SYSCALL, tid, NULL, NULL);
}

// The kernel marks the stop at a system call if it was asked to (PTRACE_O_TRACESYSGOOD).
int wait4(int pid, int *status, int options, void *usage)
{
	long found = syscall(__NR_wait4, pid, status, options, usage);

	if (undo != NULL && found > 0 && status != NULL && (*status & 0xffff) == (MARKED_TRAP << 8 | 0x7f)) {
		struct thread *entry = entry_of((uint32_t)found);

		if (entry != NULL && entry->is_in_call)
			*status = SIGTRAP << 8 | 0x7f;
	}
	return (int)found;
}

static void tell_of_breakpoint(long tid, struct info *info)
{
	struct thread *entry = entry_of((uint32_t)tid);

	if (entry == NULL || !entry->is_in_call)
		return;
	entry->is_in_call = 0;
	info->signal = SIGTRAP;
	info->code = SI_KERNEL;
}

#ifdef __x86_64__
static int has_filter(long tid)
{
	uint64_t metadata[2] = {0, 0}; // struct seccomp_metadata

	return next(SECCOMP_GET_METADATA, tid, (void *)sizeof(metadata), metadata) > 0;
}

// A signal that came meanwhile is handled first, and does not end the call with EINTR, as it else would.
static void make_call_anew(long tid)
{
	struct registers registers;
	struct part part = {&registers, sizeof(registers)};

	if (!get_registers(tid, &registers))
		return;
	if ((int64_t)registers.result != -RESTART_BLOCK || (int64_t)registers.call < 0)
		return;
	if (((uint64_t)next(PEEKDATA, tid, (void *)(registers.place - 2), NULL) & 0xffff) != SYSCALL_CODE)
		return;
	if (!has_filter(tid))
		return;
	registers.result = registers.call;
	registers.call = (uint64_t)-1;
	registers.place -= 2;
	next(SETREGSET, tid, (void *)NT_PRSTATUS, &part);
}
#else
static void make_call_anew(long tid)
{
	(void)tid;
}
#endif

long ptrace(long request, ...)
{
	va_list rest;
	long tid, result;
	void *address, *data;

	va_start(rest, request);
	tid = va_arg(rest, long);
	address = va_arg(rest, void *);
	data = va_arg(rest, void *);
	va_end(rest);
	request = (int)request;
	tid = (int)tid;
	if (request == DETACH)
		make_call_anew(tid);
	if (undo == NULL)
		return next(request, tid, address, data);
	if (request == SETREGSET || request == SETREGS)
		keep_registers(tid);
	else if (request == SETSIGMASK)
		keep_mask(tid);
	else if (request == POKETEXT || request == POKEDATA)
		keep_word(tid, address);
	else if (request == CONT && data == NULL && is_injected_call(tid))
		return run_call(tid);
	result = next(request, tid, address, data);
	if (result == 0 && (request == DETACH || request == SEIZE))
		forget(tid);
	if (result == 0 && request == GETSIGINFO)
		tell_of_breakpoint(tid, data);
	return result;
}
