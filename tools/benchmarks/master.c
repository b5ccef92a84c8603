/* A Modbus TCP master on libmodbus: the yardstick of the poller.
 *
 *   master PORT UNIT CONNECTIONS REGISTERS PERIOD_MS SECONDS
 *
 * opens CONNECTIONS connections to the loopback and, for SECONDS, reads holding registers 0.. from one
 * after the other, then again as soon as PERIOD_MS have passed since the round before began (0: at
 * once). Prints how many requests were answered, in how many seconds, with how many CPU seconds
 * (user and system, without connecting).
 */
#include <modbus/modbus.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds_of(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void sleep_until(double moment)
{
    struct timespec until = {.tv_sec = (time_t)moment};

    until.tv_nsec = (long)((moment - (double)until.tv_sec) * 1e9);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

int main(int argc, char **argv)
{
    if (argc != 7)
        return 2;
    int port = atoi(argv[1]), unit = atoi(argv[2]), connections = atoi(argv[3]), registers = atoi(argv[4]);
    double period_s = atof(argv[5]) / 1000, duration_s = atof(argv[6]);
    modbus_t **devices = calloc((size_t)connections, sizeof *devices);
    uint16_t values[MODBUS_MAX_READ_REGISTERS];
    long requests = 0;

    for (int index = 0; index < connections; index++) {
        devices[index] = modbus_new_tcp("127.0.0.1", port);
        if (!devices[index] || modbus_set_slave(devices[index], unit) || modbus_connect(devices[index]))
            return 1;
    }
    double began_s = seconds_of(CLOCK_MONOTONIC), cpu_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    double round_s = began_s, now_s = began_s;
    while (now_s - began_s < duration_s) {
        for (int index = 0; index < connections; index++, requests++)
            if (modbus_read_registers(devices[index], 0, registers, values) != registers)
                return 1;
        now_s = seconds_of(CLOCK_MONOTONIC);
        if (period_s > 0) {
            round_s += period_s;
            sleep_until(round_s);
            now_s = seconds_of(CLOCK_MONOTONIC);
        }
    }
    printf("%ld %.6f %.6f\n", requests, now_s - began_s, seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_s);
    return 0;
}
