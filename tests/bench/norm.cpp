// NORM (RFC 5740) as a program: NRL's library sends or receives one file. For the benchmark `peers`.
//
//   norm send    GROUP PORT INTERFACE RATE RECEIVERS FILE
//   norm loop    GROUP PORT INTERFACE RATE RECEIVERS FILE     the file again and again, with its parity: a carousel
//   norm receive GROUP PORT INTERFACE OUT
//   norm listen  GROUP PORT INTERFACE OUT                     the same without ever sending a packet
//
// A sender runs until it is killed, so that it serves every late request; a receiver ends when it has the file.
// C++ because the library's header is no longer C.

#include <normApi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>

namespace {

const UINT16 segment = 1400; // with all headers just below 1,500
const UINT16 block = 64;     // data segments that parity is computed over
const UINT16 parity = 32;    // segments of it for each block, sent when asked for, or by `loop` at once
const UINT32 sender_buffer = 32u << 20;
const UINT32 receiver_buffer = 64u << 20; // made at the first packet: with 256 MiB the socket's own is full meanwhile
const unsigned int socket_buffer = 4u << 20;

[[noreturn]] void fail(const char *what) {
  std::fprintf(stderr, "norm: %s\n", what);
  std::exit(1);
}

void must(bool done, const char *what) {
  if (!done) fail(what);
}

NormSessionHandle open_session(NormInstanceHandle instance, char **words, NormNodeId id) {
  NormSessionHandle session = NormCreateSession(instance, words[0], UINT16(std::atoi(words[1])), id);
  must(session != NORM_SESSION_INVALID, "no session");
  must(NormSetMulticastInterface(session, words[2]), "no such interface");
  return session;
}

void send(NormInstanceHandle instance, char **words, bool loop) {
  NormSessionHandle session = open_session(instance, words, 1);
  NormSetTxRate(session, std::atof(words[3]));
  NormSetCongestionControl(session, false);
  // The library's own guesses are for a thousand receivers half a second away. What it measures instead includes the
  // time that programs wait for a CPU; without an upper limit that leads to rounds of seconds.
  NormSetGroupSize(session, unsigned(std::atoi(words[4])));
  NormSetGrttMax(session, 0.1);
  NormSetGrttEstimate(session, 0.02);
  if (loop) {
    NormSetGrttProbingMode(session, NORM_PROBE_NONE);
    NormSetAutoParity(session, parity);
  }
  must(NormStartSender(session, NormGetRandomSessionId(), sender_buffer, segment, block, parity), "no sender");
  NormSetTxSocketBuffer(session, socket_buffer);
  NormObjectHandle file = NormFileEnqueue(session, words[5]);
  must(file != NORM_OBJECT_INVALID, "cannot send this file");
  NormObjectRetain(file);
  NormEvent event;
  while (NormGetNextEvent(instance, &event, true)) {
    if (loop && event.type == NORM_TX_OBJECT_SENT) NormRequeueObject(session, file);
  }
}

void receive(NormInstanceHandle instance, char **words, bool silent) {
  std::string out = words[3];
  std::string folder = out.substr(0, out.rfind('/') + 1);
  must(NormSetCacheDirectory(instance, folder.c_str()), "cannot write there");
  NormSessionHandle session = open_session(instance, words, NormNodeId(getpid()) + 1);
  NormSetRxCacheLimit(session, 16);
  if (silent) NormSetSilentReceiver(session, true);
  must(NormStartReceiver(session, receiver_buffer), "no receiver");
  NormSetRxSocketBuffer(session, socket_buffer);
  NormEvent event;
  while (NormGetNextEvent(instance, &event, true)) {
    if (event.type == NORM_RX_OBJECT_ABORTED) std::fprintf(stderr, "norm: object aborted\n");
    if (event.type == NORM_RX_OBJECT_COMPLETED) {
      must(NormFileRename(event.object, out.c_str()), "cannot rename");
      return;
    }
  }
  fail("the library gave up");
}

} // namespace

int main(int argc, char **argv) {
  auto is = [&](const char *word, int words) { return argc == words + 2 && !std::strcmp(argv[1], word); };
  NormInstanceHandle instance = NormCreateInstance(false);
  must(instance != NORM_INSTANCE_INVALID, "no library");
  if (is("send", 6)) send(instance, argv + 2, false);
  else if (is("loop", 6)) send(instance, argv + 2, true);
  else if (is("receive", 4)) receive(instance, argv + 2, false);
  else if (is("listen", 4)) receive(instance, argv + 2, true);
  else fail("send|loop GROUP PORT INTERFACE RATE RECEIVERS FILE, or receive|listen GROUP PORT INTERFACE OUT");
}
