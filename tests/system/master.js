// A master made of modbus-serial (npm), the library of most Modbus programs in JavaScript.
//
//     node master.js FOLDER tcp|udp|rtu-tcp PORT        or        node master.js FOLDER rtu|ascii /dev/pts/7
//
// FOLDER has node_modules. One line of JSON a call: its name and what came of it. It ends with "done".
"use strict";
const path = require("node:path");
const Modbus = require(path.join(process.argv[2], "node_modules", "modbus-serial"));
const [transport, place] = process.argv.slice(3);
const client = new Modbus();

const connect = {
  tcp: () => client.connectTCP("127.0.0.1", { port: Number(place) }),
  udp: () => client.connectUDP("127.0.0.1", { port: Number(place) }),
  "rtu-tcp": () => client.connectTelnet("127.0.0.1", { port: Number(place) }),
  rtu: () => client.connectRTUBuffered(place, { baudRate: 9600 }),
  ascii: () => client.connectAsciiSerial(place, { baudRate: 9600, startOfSlaveFrameChar: 0x3a }),
};

async function say(name, call, count) {
  let found;
  try {
    found = await call();
    found = found && found.data !== undefined ? found.data : found;
    found = Array.isArray(found) && count ? found.slice(0, count) : found; // it pads bits to whole bytes
  } catch (error) {
    found = { exception: error.modbusCode, name: error.name };
  }
  console.log(JSON.stringify([name, found]));
}

async function main() {
  await connect[transport]();
  client.setID(1);
  client.setTimeout(2000);
  await say("coils", () => client.readCoils(0, 10), 10);
  await say("discretes", () => client.readDiscreteInputs(0, 10), 10);
  await say("inputs", () => client.readInputRegisters(0, 3));
  await say("float", async () => (await client.readHoldingRegisters(0, 2)).buffer.readFloatBE(0));
  await say("long", async () => (await client.readInputRegisters(200, 2)).buffer.readInt32BE(0));
  await say("all", async () => (await client.readInputRegisters(0, 125)).data[124]);
  await say("write coil", () => client.writeCoil(20, true));
  await say("write coils", () => client.writeCoils(20, [false, true, true, true]));
  await say("read back", () => client.readCoils(20, 4), 4);
  await say("write register", () => client.writeRegister(15, 2500));
  await say("write registers", () => client.writeRegisters(10, [0x4291, 0]));
  await say("read back", async () => (await client.readHoldingRegisters(10, 2)).buffer.readFloatBE(0));
  await say("no address", () => client.readHoldingRegisters(60000, 1));
  await say("no value", () => client.readHoldingRegisters(5, 1));
  await say("out of range", () => client.writeRegister(15, 3001));
  await say("read only", () => client.writeRegister(0, 1));
  if (transport !== "ascii" && transport !== "rtu-tcp") { // there it cannot tell how long the answer is
    await say("who", () => client.readDeviceIdentification(1, 0));
  }
  console.log(JSON.stringify(["done", null]));
  client.close(() => process.exit(0));
  setTimeout(() => process.exit(0), 1000);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
