/* A master made of libmodbus, which calls every function that its client has, and says what came of each.
 *
 *     gcc master.c -o master -lmodbus
 *     ./master tcp PORT UNIT        or        ./master rtu /dev/pts/7 UNIT      (9600 8N1)
 *
 * One line a call: its name, then the values in hex, or "error" and libmodbus' word for it. It ends with
 * "done". What is there to read and write is in test_server_peers.py.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <modbus/modbus.h>

static modbus_t *line;

static void say_bits(const char *name, int count, const uint8_t *bits)
{
    printf("%s:", name);
    if (count < 0)
        printf(" error %s", modbus_strerror(errno));
    for (int n = 0; n < count; n++)
        printf(" %d", bits[n]);
    puts("");
}

static void say_words(const char *name, int count, const uint16_t *words)
{
    printf("%s:", name);
    if (count < 0)
        printf(" error %s", modbus_strerror(errno));
    for (int n = 0; n < count; n++)
        printf(" %04x", words[n]);
    puts("");
}

static void say(const char *name, int result)
{
    if (result < 0)
        printf("%s: error %s\n", name, modbus_strerror(errno));
    else
        printf("%s: %d\n", name, result);
}

static void everything(void)
{
    uint8_t bits[MODBUS_MAX_READ_BITS];
    uint16_t words[MODBUS_MAX_READ_REGISTERS];

    say_bits("read_bits", modbus_read_bits(line, 0, 10, bits), bits);
    say_bits("read_input_bits", modbus_read_input_bits(line, 0, 10, bits), bits);
    say_words("read_registers", modbus_read_registers(line, 0, 4, words), words);
    printf("float_abcd: %g\n", modbus_get_float_abcd(words));
    printf("float_cdab: %g\n", modbus_get_float_cdab(words + 2));
    say_words("read_input_registers", modbus_read_input_registers(line, 0, 3, words), words);
    say("read_125", modbus_read_input_registers(line, 0, 125, words) == 125 ? words[124] : -1);

    say("write_bit", modbus_write_bit(line, 20, 1));
    say_bits("read_back", modbus_read_bits(line, 20, 4, bits), bits);
    const uint8_t valves[] = {0, 1, 1, 1};
    say("write_bits", modbus_write_bits(line, 20, 4, valves));
    say_bits("read_back", modbus_read_bits(line, 20, 4, bits), bits);
    say("write_register", modbus_write_register(line, 15, 2500));
    uint16_t gear_and_speed[] = {0xfffb, 7};
    say("write_registers", modbus_write_registers(line, 14, 2, gear_and_speed));
    say_words("read_back", modbus_read_registers(line, 14, 2, words), words);
    uint16_t setpoint[2] = {0x4291, 0x0000};
    say("write_float", modbus_write_registers(line, 10, 2, setpoint));
    say_words("read_back", modbus_read_registers(line, 10, 2, words), words);
    say("mask_write_register", modbus_mask_write_register(line, 15, 0x00f2, 0x0025));
    say_words("read_back", modbus_read_registers(line, 15, 1, words), words);
    uint16_t steps[2] = {0x0001, 0x0002};
    say_words("write_and_read_registers",
              modbus_write_and_read_registers(line, 16, 2, steps, 14, 4, words), words);

    say_words("no_address", modbus_read_registers(line, 60000, 1, words), words);
    say_words("no_value", modbus_read_registers(line, 5, 1, words), words);
    say("read_only", modbus_write_register(line, 0, 1));
    say("half_a_float", modbus_write_register(line, 10, 1));
    say("out_of_range", modbus_write_register(line, 15, 3001));
    say("no_function", modbus_report_slave_id(line, sizeof bits, bits));
}

/* A request that libmodbus itself would not make. */
static void raw(int slave, const uint8_t *pdu, int size, int checksum, const char *name)
{
    uint8_t request[300], answer[MODBUS_TCP_MAX_ADU_LENGTH];
    request[0] = (uint8_t)slave;
    memcpy(request + 1, pdu, (size_t)size);
    printf("%s:", name);
    if (modbus_send_raw_request(line, request, size + 1) == -1) {
        printf(" error %s\n", modbus_strerror(errno));
        return;
    }
    int count = modbus_receive_confirmation(line, answer);
    if (count < 0)
        printf(" error %s", modbus_strerror(errno));
    for (int n = modbus_get_header_length(line); n < count - checksum; n++)
        printf(" %02x", answer[n]);
    puts("");
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    const int is_tcp = strcmp(argv[1], "tcp") == 0, slave = atoi(argv[3]);
    line = is_tcp ? modbus_new_tcp("127.0.0.1", atoi(argv[2])) : modbus_new_rtu(argv[2], 9600, 'N', 8, 1);
    if (line == NULL || modbus_set_slave(line, slave) == -1)
        return 1;
    modbus_set_response_timeout(line, 1, 0);
    if (modbus_connect(line) == -1) {
        fprintf(stderr, "cannot connect: %s\n", modbus_strerror(errno));
        return 1;
    }
    everything();

    const uint8_t coil[] = {0x05, 0x00, 0x14, 0x12, 0x34}, none[] = {0x03, 0x00, 0x00, 0x00, 0x00};
    raw(slave, coil, sizeof coil, is_tcp ? 0 : 2, "coil_0x1234");
    raw(slave, none, sizeof none, is_tcp ? 0 : 2, "quantity_0");

    if (is_tcp) {
        /* Sixteen requests before the first answer is read. */
        uint8_t answer[MODBUS_TCP_MAX_ADU_LENGTH];
        for (int n = 0; n < 16; n++) {
            const uint8_t request[] = {(uint8_t)slave, 0x04, 0x00, (uint8_t)n, 0x00, 0x01};
            modbus_send_raw_request(line, request, sizeof request);
        }
        printf("pipelined:");
        for (int n = 0; n < 16; n++) {
            int count = modbus_receive_confirmation(line, answer);
            printf(" %02x%02x", count > 10 ? answer[9] : 0, count > 10 ? answer[10] : 0);
        }
        puts("");
    } else {
        /* Another unit of the line is not there; a broadcast is done and not answered. */
        uint16_t word = 0;
        modbus_set_slave(line, slave + 1);
        modbus_set_response_timeout(line, 0, 200000);
        say_words("another_unit", modbus_read_registers(line, 0, 1, &word), &word);
        modbus_set_slave(line, MODBUS_BROADCAST_ADDRESS);
        say("broadcast", modbus_write_register(line, 15, 1234));
        modbus_set_slave(line, slave);
        modbus_set_response_timeout(line, 1, 0);
        say_words("read_back", modbus_read_registers(line, 15, 1, &word), &word);
    }
    puts("done");
    modbus_close(line);
    modbus_free(line);
    return 0;
}
