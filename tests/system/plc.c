/* A PLC made of libmodbus, the library that most Modbus programs in C use.
 *
 *     gcc plc.c -o plc -lmodbus && ./plc PORT
 *
 * It says "listening" once it does, and then one line for each request that writes: the request's PDU
 * in hex. It serves any number of clients and any unit id. Its tables hold 0 but for:
 *
 *     coil 0..15        on where the address is odd
 *     discrete 0..15    on where the address is a multiple of 3
 *     input n           1000 + n
 *     input 10, 20      a 32-bit and a 64-bit integer, most significant word first
 *     holding n         2000 + n
 *     holding 10..17    72.5 (0x42910000) as float32 in the orders ABCD, CDAB, BADC, DCBA. Not by
 *                       modbus_set_float_abcd and its sisters, which before libmodbus 3.1.7 swap
 *                       bytes on little-endian machines.
 *     holding 40..      what is written
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

#include <modbus/modbus.h>

enum { SIZE = 100 };

static void fill(modbus_mapping_t *map)
{
    const int32_t position = -123456789;
    const int64_t total = 1234567890123456789LL;
    for (int n = 0; n < SIZE; n++) {
        map->tab_bits[n] = n < 16 && n % 2 == 1;
        map->tab_input_bits[n] = n < 16 && n % 3 == 0;
        map->tab_input_registers[n] = 1000 + n;
        map->tab_registers[n] = n < 40 ? 2000 + n : 0;
    }
    MODBUS_SET_INT32_TO_INT16(map->tab_input_registers, 10, position);
    MODBUS_SET_INT64_TO_INT16(map->tab_input_registers, 20, total);
    static const uint16_t floats[] = {0x4291, 0x0000, 0x0000, 0x4291, 0x9142, 0x0000, 0x0000, 0x9142};
    memcpy(map->tab_registers + 10, floats, sizeof floats);
}

static void tell(const uint8_t *query, int header, int size)
{
    if (query[header] < MODBUS_FC_WRITE_SINGLE_COIL)
        return;
    for (int n = header; n < size; n++)
        printf("%02x", query[n]);
    puts("");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    modbus_t *plc = modbus_new_tcp("127.0.0.1", argc > 1 ? atoi(argv[1]) : 1502);
    modbus_mapping_t *map = modbus_mapping_new(SIZE, SIZE, SIZE, SIZE);
    if (plc == NULL || map == NULL)
        return 1;
    fill(map);
    int listener = modbus_tcp_listen(plc, 8);
    if (listener == -1) {
        fprintf(stderr, "cannot listen: %s\n", modbus_strerror(errno));
        return 1;
    }
    puts("listening");
    fflush(stdout);

    const int header = modbus_get_header_length(plc);
    int highest = listener;
    fd_set open_sockets;
    FD_ZERO(&open_sockets);
    FD_SET(listener, &open_sockets);
    for (;;) {
        fd_set ready = open_sockets;
        if (select(highest + 1, &ready, NULL, NULL, NULL) == -1)
            return 1;
        for (int socket = 0; socket <= highest; socket++) {
            if (!FD_ISSET(socket, &ready))
                continue;
            if (socket == listener) {
                int client = modbus_tcp_accept(plc, &listener);
                if (client == -1)
                    continue;
                FD_SET(client, &open_sockets);
                if (client > highest)
                    highest = client;
                continue;
            }
            uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
            modbus_set_socket(plc, socket);
            int size = modbus_receive(plc, query);
            if (size > 0) {
                tell(query, header, size);
                modbus_reply(plc, query, size, map);
            } else if (size == -1) {
                close(socket);
                FD_CLR(socket, &open_sockets);
            }
        }
    }
}
