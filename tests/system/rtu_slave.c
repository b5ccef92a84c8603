/* Some Modbus devices on one line, made of libmodbus, whose habits can be chosen and changed while it runs.
 *
 *     gcc -pthread rtu_slave.c -o rtu_slave -lmodbus
 *     ./rtu_slave rtu /dev/pts/7 "answer 1-4" "limit 60 2"
 *     ./rtu_slave tcp 0 "answer 1-100" "values mixed"
 *
 * It says "listening PORT" once it does (PORT is 0 on a serial line, which is driven at 115200 8N1). Commands
 * are arguments, and after that lines of standard input, each of which is answered by a line; when standard
 * input ends, so does the program. UNITS and ADDRESSES are N or N-M.
 *
 *     answer UNITS            they answer; at first unit 1 does, and the others are silent
 *     silent UNITS            they answer nothing
 *     except UNITS CODE       they answer everything with an exception
 *     busy UNITS N CODE       so do their next N requests
 *     refuse ADDRESSES CODE   a read that touches one of them has this exception; 0 lifts it
 *     limit N CODE            a read of more than N registers has this exception
 *     delay UNITS MS          they answer so much later; the whole line waits
 *     values own|mixed        what registers hold, see below
 *     log FILE                from now on a line for each request: seconds of the monotonic clock, unit id,
 *                             function, address, count, and what came of it: 0 answered, -1 silence, else the
 *                             exception's code
 *     count                   answered by the number of requests since the last "count"
 *
 * Registers hold their own address, or ("mixed") what no fault hits by accident: a hash of the unit id, the
 * function that reads them and the address. Coils and discrete inputs are on where the lowest bit of that is.
 *
 * libmodbus itself serves one unit a serial line: it takes a request to another unit for the begin of an
 * exchange of others and passes the next message over. So it is given a socket instead of the line, and is
 * told before each request that it is the unit that is asked.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <modbus/modbus.h>

enum { ANSWER = 0, SILENT = -1, REGISTERS = 0x10000, MAX_FDS = 256 };

static modbus_mapping_t *map;
static int habit[256];          /* ANSWER, SILENT or an exception's code */
static int busy_for[256], busy_code[256], delay_ms[256];
static uint8_t refused[REGISTERS];
static int limit = 125, limit_code = 3, is_mixed;
static long requests;
static FILE *request_log;

static uint16_t value(unsigned unit, unsigned function, unsigned address)
{
    if (!is_mixed)
        return (uint16_t)address;
    uint32_t x = address + (unit << 16) + (function << 24);
    x *= 0x9E3779B1u;
    x ^= x >> 15;
    x *= 0x85EBCA77u;
    return (uint16_t)(x >> 16);
}

static int read_range(const char *text, int most, int *first, int *last)
{
    int found = text ? sscanf(text, "%d-%d", first, last) : 0;
    if (found == 1)
        *last = *first;
    return found >= 1 && *first >= 0 && *first <= *last && *last <= most;
}

/* Carries out a command; returns what is to be said about it. */
static const char *obey(char *line)
{
    static char said[64];
    char *rest = NULL;
    const char *name = strtok_r(line, " \n", &rest), *what = strtok_r(NULL, " \n", &rest);
    const char *third = strtok_r(NULL, " \n", &rest), *fourth = strtok_r(NULL, " \n", &rest);
    int first = 0, last = 0, number = third ? atoi(third) : 0, code = fourth ? atoi(fourth) : 0;

    if (name == NULL)
        return "?";
    if (!strcmp(name, "count")) {
        snprintf(said, sizeof said, "%ld", requests);
        requests = 0;
        return said;
    }
    if (!strcmp(name, "values") && what) {
        is_mixed = !strcmp(what, "mixed");
        return "ok";
    }
    if (!strcmp(name, "limit") && what && third) {
        limit = atoi(what);
        limit_code = number;
        return "ok";
    }
    if (!strcmp(name, "log") && what) {
        request_log = fopen(what, "w");
        return request_log ? "ok" : "?";
    }
    if (!strcmp(name, "refuse")) {
        if (!read_range(what, REGISTERS - 1, &first, &last) || !third)
            return "?";
        memset(refused + first, number, (size_t)(last - first + 1));
        return "ok";
    }
    if (!read_range(what, 255, &first, &last))
        return "?";
    for (int unit = first; unit <= last; unit++) {
        if (!strcmp(name, "answer")) {
            habit[unit] = ANSWER;
        } else if (!strcmp(name, "silent")) {
            habit[unit] = SILENT;
        } else if (!strcmp(name, "except") && third) {
            habit[unit] = number;
        } else if (!strcmp(name, "busy") && fourth) {
            busy_for[unit] = number;
            busy_code[unit] = code;
        } else if (!strcmp(name, "delay") && third) {
            delay_ms[unit] = number;
        } else {
            return "?";
        }
    }
    return "ok";
}

/* Returns 0 if a request is to be answered, -1 if with silence, else the exception's code. */
static int judge(unsigned unit, unsigned function, unsigned address, unsigned count)
{
    if (habit[unit] != ANSWER)
        return habit[unit];
    if (busy_for[unit] > 0) {
        busy_for[unit]--;
        return busy_code[unit];
    }
    if (function < 1 || function > 4 || address + count > REGISTERS)
        return 0;
    if (function >= 3 && (int)count > limit)
        return limit_code;
    for (unsigned n = 0; n < count; n++)
        if (refused[address + n])
            return refused[address + n];
    return 0;
}

static void fill(unsigned unit, unsigned function, unsigned address, unsigned count)
{
    for (unsigned n = address; n < address + count && n < REGISTERS; n++) {
        uint16_t found = value(unit, function, n);
        if (function == 1)
            map->tab_bits[n] = found & 1;
        else if (function == 2)
            map->tab_input_bits[n] = found & 1;
        else if (function == 3)
            map->tab_registers[n] = found;
        else if (function == 4)
            map->tab_input_registers[n] = found;
    }
}

static void serve(modbus_t *line, const uint8_t *query, int size)
{
    const uint8_t *pdu = query + modbus_get_header_length(line);
    unsigned unit = pdu[-1], address = pdu[1] << 8 | pdu[2], count = pdu[3] << 8 | pdu[4];
    int verdict = judge(unit, pdu[0], address, count);

    requests++;
    if (request_log) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        fprintf(request_log, "%ld.%09ld %u %u %u %u %d\n", (long)now.tv_sec, now.tv_nsec, unit, pdu[0],
                address, count, verdict);
        fflush(request_log);
    }
    if (verdict == SILENT)
        return;
    if (delay_ms[unit])
        usleep((useconds_t)delay_ms[unit] * 1000);
    if (verdict > 0) {
        modbus_reply_exception(line, query, (unsigned)verdict);
        return;
    }
    fill(unit, pdu[0], address, count);
    modbus_reply(line, query, size, map);
}

/* Takes commands; returns 0 when there will be no more. */
static int listen_to_us(void)
{
    char line[256];
    if (fgets(line, sizeof line, stdin) == NULL)
        return 0;
    puts(obey(line));
    fflush(stdout);
    return 1;
}

static void say_listening(int port)
{
    printf("listening %d\n", port);
    fflush(stdout);
}

/* --- a serial line */

struct wire {
    int from, to;
};

static void *pump(void *argument)
{
    const struct wire *wire = argument;
    uint8_t data[1024];
    for (;;) {
        ssize_t got = read(wire->from, data, sizeof data);
        if (got == 0 || (got < 0 && errno == EAGAIN)) {
            struct pollfd wanted = {.fd = wire->from, .events = POLLIN};
            poll(&wanted, 1, 1000);
            continue;
        }
        if (got < 0)
            return NULL;
        for (ssize_t done = 0; done < got;) {
            ssize_t put = write(wire->to, data + done, (size_t)(got - done));
            if (put < 0 && errno != EAGAIN)
                return NULL;
            done += put > 0 ? put : 0;
        }
    }
}

static int serve_serial(const char *port)
{
    modbus_t *line = modbus_new_rtu(port, 115200, 'N', 8, 1);
    int ends[2];
    pthread_t there, back;
    if (line == NULL || modbus_set_slave(line, 1) == -1 || modbus_connect(line) == -1
        || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == -1) {
        fprintf(stderr, "cannot open %s: %s\n", port, modbus_strerror(errno));
        return 1;
    }
    int tty = modbus_get_socket(line);
    struct wire inward = {tty, ends[1]}, outward = {ends[1], tty};
    modbus_set_socket(line, ends[0]);
    modbus_set_byte_timeout(line, 0, 20000);
    pthread_create(&there, NULL, pump, &inward);
    pthread_create(&back, NULL, pump, &outward);
    say_listening(0);
    for (;;) {
        struct pollfd ready[2] = {{.fd = 0, .events = POLLIN}, {.fd = ends[0], .events = POLLIN}};
        uint8_t query[MODBUS_RTU_MAX_ADU_LENGTH], noise[1024], unit;
        if (poll(ready, 2, -1) == -1)
            return 1;
        if (ready[0].revents && !listen_to_us())
            return 0;
        if (!(ready[1].revents & POLLIN) || recv(ends[0], &unit, 1, MSG_PEEK) != 1)
            continue;
        int size = -1;
        if (modbus_set_slave(line, unit) == 0 && unit != 0)
            size = modbus_receive(line, query);
        if (size > 0)
            serve(line, query, size);
        else
            while (poll(&ready[1], 1, 5) > 0 && recv(ends[0], noise, sizeof noise, 0) > 0) {
            }
    }
}

/* --- TCP */

static int serve_tcp(int port)
{
    modbus_t *line = modbus_new_tcp("127.0.0.1", port);
    struct pollfd ready[MAX_FDS] = {{.fd = 0, .events = POLLIN}};
    struct sockaddr_in place;
    socklen_t place_size = sizeof place;
    nfds_t used = 2;
    int listener = line == NULL ? -1 : modbus_tcp_listen(line, 128);
    if (listener == -1 || getsockname(listener, (struct sockaddr *)&place, &place_size) == -1) {
        fprintf(stderr, "cannot listen: %s\n", modbus_strerror(errno));
        return 1;
    }
    modbus_set_byte_timeout(line, 0, 20000);
    ready[1] = (struct pollfd){.fd = listener, .events = POLLIN};
    say_listening(ntohs(place.sin_port));
    for (;;) {
        uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
        if (poll(ready, used, -1) == -1)
            return 1;
        if (ready[0].revents && !listen_to_us())
            return 0;
        for (nfds_t n = 2; n < used; n++) {
            if (!ready[n].revents)
                continue;
            modbus_set_socket(line, ready[n].fd);
            int size = modbus_receive(line, query);
            if (size > 0) {
                serve(line, query, size);
            } else if (size == -1) {
                close(ready[n].fd);
                ready[n--] = ready[--used];
            }
        }
        if (ready[1].revents) {
            int client = modbus_tcp_accept(line, &listener);
            if (client != -1 && used == MAX_FDS)
                close(client);
            else if (client != -1)
                ready[used++] = (struct pollfd){.fd = client, .events = POLLIN};
        }
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdin, NULL, _IONBF, 0);
    for (int unit = 0; unit < 256; unit++)
        habit[unit] = unit == 1 ? ANSWER : SILENT;
    map = modbus_mapping_new(REGISTERS, REGISTERS, REGISTERS, REGISTERS);
    if (map == NULL || argc < 3) {
        fprintf(stderr, "usage: rtu_slave rtu PORT | tcp PORT [COMMAND …]\n");
        return 2;
    }
    for (int n = 3; n < argc; n++)
        if (!strcmp(obey(argv[n]), "?")) {
            fprintf(stderr, "rtu_slave: what is '%s'?\n", argv[n]);
            return 2;
        }
    return strcmp(argv[1], "rtu") ? serve_tcp(atoi(argv[2])) : serve_serial(argv[2]);
}
