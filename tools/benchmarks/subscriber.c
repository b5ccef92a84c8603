/* Writes down when each message of a broker came: a line with the time (seconds since the epoch), the
 * topic, the length of the payload and the beginning of it.
 *
 *   subscriber BROKER_PORT FILE TOPIC...
 *
 * Prints a line when the broker has taken all subscriptions (QoS 0). Ends when its standard input does.
 */
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { SHOWN = 60 };

static int subscribed;

static void on_connect(struct mosquitto *client, void *topics, int code)
{
    (void)code;
    for (char **topic = topics; *topic; topic++)
        mosquitto_subscribe(client, NULL, *topic, 0);
}

static void on_subscribe(struct mosquitto *client, void *topics, int id, int count, const int *granted)
{
    (void)client, (void)id, (void)count, (void)granted;
    if (!((char **)topics)[++subscribed]) {
        puts("subscribed");
        fflush(stdout);
    }
}

static FILE *file;

static void on_message(struct mosquitto *client, void *topics, const struct mosquitto_message *message)
{
    struct timespec now;
    int shown = message->payloadlen < SHOWN ? message->payloadlen : SHOWN;

    (void)client, (void)topics;
    clock_gettime(CLOCK_REALTIME, &now);
    fprintf(file, "%ld.%09ld %s %d %.*s\n", (long)now.tv_sec, now.tv_nsec, message->topic,
            message->payloadlen, shown, (char *)message->payload);
}

int main(int argc, char **argv)
{
    char byte;

    if (argc < 4 || !(file = fopen(argv[2], "w")))
        return 2;
    mosquitto_lib_init();
    struct mosquitto *client = mosquitto_new(NULL, true, argv + 3);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_subscribe_callback_set(client, on_subscribe);
    mosquitto_message_callback_set(client, on_message);
    if (mosquitto_connect(client, "127.0.0.1", atoi(argv[1]), 30) || mosquitto_loop_start(client))
        return 1;
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    mosquitto_disconnect(client);
    mosquitto_loop_stop(client, false);
    return fclose(file);
}
