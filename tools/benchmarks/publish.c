/* Polls devices and publishes what they say, on libmodbus and libmosquitto: a yardstick of `publish.py`.
 *
 *   publish PLC_PORT BROKER_PORT UNIT DEVICES REGISTERS PERIOD_MS SECONDS
 *
 * One thread reads all devices in turn, each over a connection of its own, and publishes each device's
 * registers as one message (QoS 1, not retained) as soon as they are read; then again when PERIOD_MS have
 * passed since the round before was due (0: at once). Nothing is spread over the period: one wake-up for all
 * of them is what costs least. The same thread is the broker's client.
 */
#include <modbus/modbus.h>
#include <mosquitto.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_UNACKNOWLEDGED = 100, MAX_PAYLOAD = 64 + MODBUS_MAX_READ_REGISTERS * 12 };

static int connected, unacknowledged;

static void on_connect(struct mosquitto *client, void *data, int code)
{
    (void)client, (void)data;
    connected = code == 0;
}

static void on_publish(struct mosquitto *client, void *data, int id)
{
    (void)client, (void)data, (void)id;
    unacknowledged--;
}

static double monotonic_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Writes a device's registers as JSON; returns its length. */
static int write_json(char *out, const struct timespec *read_at, const uint16_t *values, int count)
{
    char second[32];
    struct tm parts;
    int length;

    gmtime_r(&read_at->tv_sec, &parts);
    strftime(second, sizeof second, "%Y-%m-%dT%H:%M:%S", &parts);
    length = sprintf(out, "{\"time\":\"%s.%06ldZ\",\"values\":{", second, read_at->tv_nsec / 1000);
    for (int index = 0; index < count; index++)
        length += sprintf(out + length, "%s\"r%d\":%u", index ? "," : "", index, values[index]);
    return length + sprintf(out + length, "},\"bad\":{}}");
}

/* Serves the broker's connection until a moment, without sleeping past it. */
static int serve_until(struct mosquitto *client, double moment_s)
{
    double left_s;

    while ((left_s = moment_s - monotonic_s()) > 0) {
        if (left_s < 0.001) {
            struct timespec rest = {.tv_nsec = (long)(left_s * 1e9)};
            nanosleep(&rest, NULL);
        } else if (mosquitto_loop(client, (int)(left_s * 1000), 1)) {
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 8)
        return 2;
    int port = atoi(argv[1]), unit = atoi(argv[3]), count = atoi(argv[4]), registers = atoi(argv[5]);
    double period_s = atof(argv[6]) / 1000, duration_s = atof(argv[7]);
    modbus_t **devices = calloc((size_t)count, sizeof *devices);
    uint16_t values[MODBUS_MAX_READ_REGISTERS];
    char payload[MAX_PAYLOAD], topic[64];
    struct timespec read_at;

    mosquitto_lib_init();
    struct mosquitto *client = mosquitto_new("publish-c", true, NULL);
    mosquitto_int_option(client, MOSQ_OPT_TCP_NODELAY, 1);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_publish_callback_set(client, on_publish);
    if (mosquitto_connect(client, "127.0.0.1", atoi(argv[2]), 30))
        return 1;
    while (!connected)
        if (mosquitto_loop(client, 100, 1))
            return 1;
    for (int index = 0; index < count; index++) {
        devices[index] = modbus_new_tcp("127.0.0.1", port);
        if (!devices[index] || modbus_set_slave(devices[index], unit) || modbus_connect(devices[index]))
            return 1;
    }
    double began_s = monotonic_s(), round_s = began_s;
    while (monotonic_s() - began_s < duration_s) {
        for (int index = 0; index < count; index++) {
            if (modbus_read_registers(devices[index], 0, registers, values) != registers)
                return 1;
            clock_gettime(CLOCK_REALTIME, &read_at);
            int length = write_json(payload, &read_at, values, registers);
            snprintf(topic, sizeof topic, "plant/c/plc%d", index + 1);
            if (mosquitto_publish(client, NULL, topic, length, payload, 1, false))
                return 1;
            unacknowledged++;
            do { /* take what has been acknowledged; wait for it if that is too little */
                if (mosquitto_loop(client, unacknowledged > MAX_UNACKNOWLEDGED ? 10 : 0, 1))
                    return 1;
            } while (unacknowledged > MAX_UNACKNOWLEDGED);
        }
        round_s += period_s;
        if (serve_until(client, round_s))
            return 1;
    }
    return 0;
}
