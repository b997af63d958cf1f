/* A load on Redis: N kept connections, a fixed total rate of writes, every acknowledged write remembered.
 *
 *     redis_load ADDRESS PORT CONNECTIONS RATE incr|set PREFIX KEYS SIZE
 *
 * Each connection has at most one write under way and owns the keys PREFIX0 … PREFIX(KEYS-1) whose number it leaves as
 * remainder modulo CONNECTIONS; `incr` wants keys that are not there yet. Its next write is due at the next point of an absolute grid, or at once if the last
 * reply came later than that. `incr` counts each key up, and every reply must be one more than the last; `set` writes
 * the write's number, padded to SIZE bytes, to keys in a random order. Connections are never made anew.
 *
 * Lines on stdin are orders, each is answered by one line of JSON on stdout:
 *     mark    what was seen since the last mark: the longest time between two replies on one connection (the period of
 *             the grid included), that between two replies of any two connections, counts
 *     stop    send nothing more, wait for what is under way, then read every key that was written, over a connection
 *             of its own, and compare: "lost" are acknowledged writes that Redis does not know. Ends with status 0 if
 *             nothing was lost and nothing went wrong.
 * Times are CLOCK_MONOTONIC.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_REPLY 512
#define DRAIN_S 30.0
#define VERIFY_DEPTH 256
#define DIGITS 20

struct connection {
    int fd;
    double due, last_reply, longest;
    uint32_t key;            /* of the write under way */
    uint64_t number;         /* what that write makes the key's value */
    bool waiting, broken;
    char reply[MAX_REPLY];
    size_t length;
};

static struct sockaddr_in server;
static struct connection *connections;
static int count, epoll_fd;
static double period;
static bool increments, stopping;
static const char *prefix;
static uint32_t keys;
static size_t size;
static uint64_t *acknowledged; /* by key: the value that Redis has confirmed last */
static uint64_t *attempted;    /* by key: the value that it may have besides */
static char *request;

static uint64_t base; /* of the numbers that `set` writes: above those of every earlier run */

static uint64_t sent, replies, total_acknowledged, marked_sent, marked_replies;
static unsigned errors, resets, wrong;
static char first_error[128];
static double last_any, longest_any, marked_at;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
    fprintf(stderr, "redis_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) != 0)
        die("cannot connect to Redis");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void note_error(const char *text) {
    if (errors++ == 0) {
        snprintf(first_error, sizeof first_error, "%s", text);
        for (char *c = first_error; *c; c++)
            if (*c == '"' || *c == '\\' || *c < ' ')
                *c = ' ';
    }
}

static void break_off(struct connection *c, int error) {
    resets += error == ECONNRESET;
    note_error(error ? strerror(error) : "closed by Redis");
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    close(c->fd);
    c->broken = true;
    c->waiting = false;
}

static uint32_t random_below(uint32_t limit) {
    static uint64_t state = 0x9E3779B97F4A7C15u; /* xorshift64: the order need not be good, only spread */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) * limit >> 32);
}

static void write_one(struct connection *c) {
    uint32_t index = (uint32_t)(c - connections), own = (keys - index - 1) / (uint32_t)count + 1;
    char name[64];
    int length, name_length;
    c->key = index + random_below(own) * (uint32_t)count;
    c->number = acknowledged[c->key] + 1;
    attempted[c->key] = c->number;
    name_length = snprintf(name, sizeof name, "%s%u", prefix, c->key);
    if (increments) {
        length = sprintf(request, "*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n", name_length, name);
    } else {
        length = sprintf(request, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%zu\r\n", name_length, name, size);
        memset(request + length, 'x', size);
        sprintf(request + length, "%0*llu", DIGITS, (unsigned long long)(base + c->number));
        request[length + DIGITS] = 'x';
        memcpy(request + length + size, "\r\n", 2);
        length += (int)size + 2;
    }
    /* One write at a time: it always fits into the socket's buffer, or the connection is gone. */
    if (send(c->fd, request, (size_t)length, MSG_NOSIGNAL) != length) {
        break_off(c, errno);
        return;
    }
    c->waiting = true;
    sent++;
}

static void note_reply(struct connection *c) {
    double at = now();
    bool good = increments ? c->reply[0] == ':' : strcmp(c->reply, "+OK") == 0;
    c->waiting = false;
    c->length = 0;
    if (!good) {
        note_error(c->reply);
    } else {
        if (increments && strtoull(c->reply + 1, NULL, 10) != c->number)
            wrong++;
        acknowledged[c->key] = c->number;
        total_acknowledged++;
    }
    if (c->last_reply > 0 && at - c->last_reply > c->longest)
        c->longest = at - c->last_reply;
    if (last_any > 0 && at - last_any > longest_any)
        longest_any = at - last_any;
    c->last_reply = last_any = at;
    replies++;
    c->due += period;
    if (c->due < at) { /* late: at once, and then on the grid again */
        while (c->due + period < at)
            c->due += period;
    }
}

static void read_from(struct connection *c) {
    ssize_t got = recv(c->fd, c->reply + c->length, MAX_REPLY - 1 - c->length, MSG_DONTWAIT);
    if (got <= 0) {
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        break_off(c, got < 0 ? errno : 0);
        return;
    }
    c->length += (size_t)got;
    c->reply[c->length] = 0;
    char *end = strstr(c->reply, "\r\n");
    if (end != NULL) {
        *end = 0;
        note_reply(c);
    } else if (c->length == MAX_REPLY - 1) {
        break_off(c, EPROTO);
    }
}

static unsigned retransmits(void) {
    unsigned total = 0;
    for (int i = 0; i < count; i++) {
        struct tcp_info info;
        socklen_t length = sizeof info;
        if (!connections[i].broken &&
            getsockopt(connections[i].fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
            length >= offsetof(struct tcp_info, tcpi_total_retrans) + sizeof info.tcpi_total_retrans)
            total += info.tcpi_total_retrans;
    }
    return total;
}

static int by_value(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static void print_counts(void) {
    printf("\"errors\": %u, \"resets\": %u, \"wrong_replies\": %u, \"first_error\": \"%s\", \"retransmits\": %u}\n",
           errors, resets, wrong, first_error, retransmits());
    fflush(stdout);
}

static void mark(void) {
    double at = now(), *longest = calloc((size_t)count, sizeof *longest);
    for (int i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        longest[i] = c->longest;
        if (c->waiting && at - c->last_reply > longest[i]) /* a gap that has not ended yet */
            longest[i] = at - c->last_reply;
        c->longest = 0;
    }
    if (at - last_any > longest_any)
        longest_any = at - last_any;
    qsort(longest, (size_t)count, sizeof *longest, by_value);
    printf("{\"time\": %.6f, \"seconds\": %.6f, \"connections\": %d, \"sent\": %llu, \"replies\": %llu, "
           "\"gap_ms\": %.3f, \"gap_median_ms\": %.3f, \"overall_gap_ms\": %.3f, ",
           at, at - marked_at, count, (unsigned long long)(sent - marked_sent),
           (unsigned long long)(replies - marked_replies), longest[count - 1] * 1e3, longest[count / 2] * 1e3,
           longest_any * 1e3);
    print_counts();
    free(longest);
    longest_any = 0;
    marked_at = at;
    marked_sent = sent;
    marked_replies = replies;
}

static bool take_orders(void) {
    static char line[64];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
    if (got <= 0)
        return false;
    length += (size_t)got;
    for (char *end; (end = memchr(line, '\n', length)) != NULL;) {
        *end = 0;
        if (strcmp(line, "mark") == 0)
            mark();
        else
            stopping = true;
        length -= (size_t)(end + 1 - line);
        memmove(line, end + 1, length);
    }
    return length < sizeof line - 1;
}

static void run(void) {
    struct epoll_event events[64];
    double give_up = 0;
    for (;;) {
        double at = now(), wake = at + 0.1;
        int busy = 0, left = 0;
        for (int i = 0; i < count; i++) {
            struct connection *c = &connections[i];
            if (!c->broken && !c->waiting && !stopping && c->due <= at)
                write_one(c);
            left += !c->broken;
            busy += c->waiting;
            if (!c->broken && !c->waiting && c->due < wake)
                wake = c->due;
        }
        if (stopping) {
            if (give_up == 0)
                give_up = at + DRAIN_S;
            if (busy == 0 || at > give_up)
                return;
            wake = at + 0.01;
        } else if (left == 0) {
            wake = at + 0.1; /* nothing to do but to answer marks */
        }
        double pause = wake - now();
        struct timespec timeout = {0, pause > 0 ? (long)(pause * 1e9) : 0};
        int ready = epoll_pwait2(epoll_fd, events, 64, &timeout, NULL);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr != NULL)
                read_from(events[i].data.ptr);
            else if (!take_orders())
                stopping = true;
        }
    }
}

/* Ask for the keys' values, some hundred at a time, and compare. */
static bool verify(void) {
    uint64_t lost = 0, unknown = 0, checked = 0, written = 0;
    int fd = dial();
    FILE *from = fdopen(fd, "r");
    uint32_t batch[VERIFY_DEPTH];
    for (uint32_t i = 0; i < keys; i++)
        written += acknowledged[i] != 0;
    for (uint32_t next = 0; next < keys;) {
        char text[VERIFY_DEPTH * 128];
        int number = 0, length = 0, done = 0;
        for (; next < keys && number < VERIFY_DEPTH; next++) {
            char name[64];
            int name_length;
            if (acknowledged[next] == 0)
                continue;
            name_length = snprintf(name, sizeof name, "%s%u", prefix, next);
            length += sprintf(text + length, "*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%s\r\n$1\r\n0\r\n$2\r\n%d\r\n",
                              name_length, name, DIGITS - 1);
            batch[number++] = next;
        }
        while (done < length) {
            ssize_t put = send(fd, text + done, (size_t)(length - done), MSG_NOSIGNAL);
            if (put <= 0)
                die("verification");
            done += (int)put;
        }
        for (int i = 0; i < number; i++) {
            char line[128];
            if (fgets(line, sizeof line, from) == NULL || line[0] != '$' || fgets(line, sizeof line, from) == NULL)
                die("verification: unexpected reply");
            uint64_t value = strtoull(line, NULL, 10);
            checked++;
            if (value < base + acknowledged[batch[i]])
                lost += value < base ? acknowledged[batch[i]] : base + acknowledged[batch[i]] - value;
            else if (value > base + attempted[batch[i]])
                unknown++;
        }
    }
    fclose(from);
    printf("{\"time\": %.6f, \"acknowledged\": %llu, \"keys_written\": %llu, \"keys_checked\": %llu, \"lost\": %llu, "
           "\"unknown\": %llu, ",
           now(), (unsigned long long)total_acknowledged, (unsigned long long)written, (unsigned long long)checked,
           (unsigned long long)lost, (unsigned long long)unknown);
    print_counts();
    return lost == 0 && unknown == 0;
}

int main(int argc, char **argv) {
    if (argc != 9 || (strcmp(argv[5], "incr") != 0 && strcmp(argv[5], "set") != 0)) {
        fprintf(stderr, "usage: redis_load ADDRESS PORT CONNECTIONS RATE incr|set PREFIX KEYS SIZE\n");
        return 2;
    }
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    count = atoi(argv[3]);
    increments = strcmp(argv[5], "incr") == 0;
    prefix = argv[6];
    keys = (uint32_t)strtoul(argv[7], NULL, 10);
    size = strtoul(argv[8], NULL, 10);
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 || count < 1 || atof(argv[4]) <= 0 ||
        keys < (uint32_t)count || size <= DIGITS || size > 1 << 16 || strlen(prefix) > 32) {
        fprintf(stderr, "redis_load: an argument makes no sense (as many keys as connections, 21 to 65536 bytes)\n");
        return 2;
    }
    period = count / atof(argv[4]);
    connections = calloc((size_t)count, sizeof *connections);
    acknowledged = calloc(keys, sizeof *acknowledged);
    attempted = calloc(keys, sizeof *attempted);
    request = malloc(size + 256);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !acknowledged || !attempted || !request || epoll_fd < 0)
        die("start");
    struct epoll_event order = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &order) != 0)
        die("stdin must be a pipe");
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        connections[i].fd = dial();
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connections[i].fd, &event);
    }
    marked_at = now();
    base = increments ? 0 : (uint64_t)(marked_at * 1e6);
    for (int i = 0; i < count; i++)
        connections[i].due = marked_at + period * i / count;
    run();
    return verify() && !errors && !wrong ? 0 : 1;
}
