/* A Modbus TCP server that answers as fast as a core can: the simulated PLC of the benchmarks.
 *
 *   plc [FIRST_SILENT LAST_SILENT [LOG]]
 *
 * It answers reads of holding and input registers (functions 3 and 4), for any number of connections:
 *
 *   odd unit ids   a register holds its own address, always
 *   even unit ids  every register has another value at every read
 *   from 129 on    the same with pairs of registers: one float32 each, high word first
 *
 * Everything else is answered with an exception, except that unit ids from FIRST_SILENT to LAST_SILENT
 * are never answered at all. To the file LOG goes a line for every request: when it came, in seconds of
 * the monotonic clock, its unit id and its address.
 *
 * It listens on a free port of the loopback, prints that port, and ends when its standard input does,
 * which is when the benchmark ends, however it ends.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 1024, HEADER = 7, REQUEST = 12, MAX_REGISTERS = 125, FIRST_FLOAT_UNIT = 129 };

struct session {
    uint8_t data[REQUEST * 32];
    size_t used;
};

static struct session sessions[MAX_FD];
static uint16_t reads;
static int first_silent = 256, last_silent = -1;
static FILE *request_log;

static uint16_t register_value(unsigned unit, unsigned address, uint16_t shift)
{
    float value;
    uint32_t bits;

    if (unit < FIRST_FLOAT_UNIT)
        return (uint16_t)(address + shift);
    value = (float)(address / 2 + shift);
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(address % 2 ? bits : bits >> 16);
}

static void write_log(const uint8_t *request)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    fprintf(request_log, "%ld.%09ld %d %d\n", (long)now.tv_sec, now.tv_nsec, request[6],
            request[8] << 8 | request[9]);
}

/* Writes the answer to one request of 12 bytes, returns its length. */
static size_t answer(const uint8_t *request, uint8_t *out)
{
    uint8_t function = request[7];
    unsigned address = request[8] << 8 | request[9];
    unsigned count = request[10] << 8 | request[11];
    size_t length = 2;

    memcpy(out, request, HEADER + 1);
    if (function != 3 && function != 4) {
        out[7] |= 0x80;
        out[8] = 1;
    } else if (count < 1 || count > MAX_REGISTERS || address + count > 0x10000) {
        out[7] |= 0x80;
        out[8] = 3;
    } else {
        uint16_t shift = request[6] % 2 ? 0 : ++reads;
        out[8] = (uint8_t)(2 * count);
        for (unsigned index = 0; index < count; index++) {
            uint16_t value = htons(register_value(request[6], address + index, shift));
            memcpy(out + 9 + 2 * index, &value, sizeof value);
        }
        length = 2 + 2 * count;
    }
    out[4] = (uint8_t)((length + 1) >> 8);
    out[5] = (uint8_t)(length + 1);
    return HEADER + length;
}

/* Takes what has arrived on a connection and answers it; returns 0 when the connection has ended. */
static int serve(int fd)
{
    static uint8_t out[32 * (HEADER + 2 + 2 * MAX_REGISTERS)];
    struct session *session = &sessions[fd];
    size_t position = 0, length = 0;
    ssize_t got = recv(fd, session->data + session->used, sizeof session->data - session->used, 0);

    if (got <= 0)
        return 0;
    session->used += (size_t)got;
    for (; session->used - position >= REQUEST; position += REQUEST) {
        const uint8_t *request = session->data + position;
        if (request[2] || request[3] || request[4] || request[5] != REQUEST - 6)
            return 0; /* not a request to read, nor another of that length */
        if (request_log)
            write_log(request);
        if (request[6] >= first_silent && request[6] <= last_silent)
            continue;
        length += answer(request, out + length);
    }
    session->used -= position;
    memmove(session->data, session->data + position, session->used);
    return !length || send(fd, out, length, MSG_NOSIGNAL) == (ssize_t)length;
}

int main(int argc, char **argv)
{
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof place;
    int listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0), one = 1;
    struct epoll_event event = {.events = EPOLLIN}, ready[64];

    if (argc > 2) {
        first_silent = atoi(argv[1]);
        last_silent = atoi(argv[2]);
    }
    if (argc > 3 && !(request_log = fopen(argv[3], "w")))
        return 1;
    if (bind(listener, (struct sockaddr *)&place, size) || listen(listener, 512) ||
        getsockname(listener, (struct sockaddr *)&place, &size))
        return 1;
    printf("%d\n", ntohs(place.sin_port));
    fflush(stdout);
    event.data.fd = listener;
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = STDIN_FILENO;
    epoll_ctl(poll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    for (;;) {
        int count = epoll_wait(poll, ready, 64, -1);
        for (int index = 0; index < count; index++) {
            int fd = ready[index].data.fd;
            if (fd == STDIN_FILENO)
                return request_log ? fclose(request_log) : 0;
            if (fd != listener) {
                if (!serve(fd))
                    close(fd);
                continue;
            }
            fd = accept(listener, NULL, NULL);
            if (fd < 0 || fd >= MAX_FD) {
                close(fd);
                continue;
            }
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            sessions[fd].used = 0;
            event.data.fd = fd;
            epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
