/* A Modbus TCP master on libmodbus: the yardstick of the poller.
 *
 *   master PORT FIRST_UNIT UNIT_STEP UNITS CONNECTIONS REGISTERS PERIOD_MS SECONDS
 *
 * opens CONNECTIONS connections to the loopback and, for SECONDS, reads holding registers 0.. of each
 * unit (FIRST_UNIT, FIRST_UNIT + UNIT_STEP, ...) of one connection after the other, then again as soon
 * as PERIOD_MS have passed since the round before began (0, or when they have passed already: at once).
 * A unit that does not answer costs libmodbus' own response timeout of 500 ms. Prints how many requests
 * were answered, in how many seconds, with how many CPU seconds (user and system, without connecting).
 */
#include <errno.h>
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

/* Returns how many requests the reading of a unit took, or -1 if it did not answer. */
static int read_unit(modbus_t *device, int unit, int registers)
{
    uint16_t values[MODBUS_MAX_READ_REGISTERS];
    int requests = 0;

    modbus_set_slave(device, unit);
    for (int address = 0; address < registers; address += MODBUS_MAX_READ_REGISTERS, requests++) {
        int left = registers - address;
        int count = left < MODBUS_MAX_READ_REGISTERS ? left : MODBUS_MAX_READ_REGISTERS;
        if (modbus_read_registers(device, address, count, values) != count)
            return -1;
    }
    return requests;
}

int main(int argc, char **argv)
{
    if (argc != 9)
        return 2;
    int port = atoi(argv[1]), first_unit = atoi(argv[2]), unit_step = atoi(argv[3]), units = atoi(argv[4]);
    int connections = atoi(argv[5]), registers = atoi(argv[6]);
    double period_s = atof(argv[7]) / 1000, duration_s = atof(argv[8]);
    modbus_t **devices = calloc((size_t)connections, sizeof *devices);
    long requests = 0;

    for (int index = 0; index < connections; index++) {
        devices[index] = modbus_new_tcp("127.0.0.1", port);
        if (!devices[index] || modbus_connect(devices[index]))
            return 1;
    }
    double began_s = seconds_of(CLOCK_MONOTONIC), cpu_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    double round_s = began_s, now_s = began_s;
    while (now_s - began_s < duration_s) {
        for (int index = 0; index < connections; index++)
            for (int unit = 0; unit < units && now_s - began_s < duration_s; unit++) {
                int done = read_unit(devices[index], first_unit + unit * unit_step, registers);
                if (done < 0 && errno != ETIMEDOUT)
                    return 1;
                if (done < 0)
                    now_s = seconds_of(CLOCK_MONOTONIC);
                else
                    requests += done;
            }
        now_s = seconds_of(CLOCK_MONOTONIC);
        round_s += period_s;
        if (round_s > now_s) {
            sleep_until(round_s);
            now_s = seconds_of(CLOCK_MONOTONIC);
        } else {
            round_s = now_s;
        }
    }
    printf("%ld %.6f %.6f\n", requests, now_s - began_s, seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_s);
    return 0;
}
