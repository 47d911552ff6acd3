// The echo of C++ gRPC, once on the sync and once on the callback API, for `tailorbird bench peers`.
//
//   echo_server sync|callback ANSWER_FILE
//
// Prints the port it listens on (127.0.0.1, in the clear) and serves until standard input ends. Every call is answered with the
// bytes of the file, a serialized Body. The callback API hands bytes through as they are; the sync API, which has no such
// variant, parses the request and serializes the answer: a copy each, since a Body is one field.

#include <grpcpp/grpcpp.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "echo.grpc.pb.h"

namespace {

using tailorbird::bench::Body;
using tailorbird::bench::Echo;

class SyncEcho final : public Echo::Service {
 public:
  explicit SyncEcho(const std::string& answer) : is_good_(answer_.ParseFromString(answer)) {}

  bool is_good() const { return is_good_; }

  grpc::Status Call(grpc::ServerContext*, const Body*, Body* answer) override {
    *answer = answer_;
    return grpc::Status::OK;
  }

 private:
  Body answer_;
  bool is_good_;
};

class CallbackEcho final : public Echo::WithRawCallbackMethod_Call<Echo::Service> {
 public:
  explicit CallbackEcho(const std::string& answer) {
    const grpc::Slice slice(answer);
    answer_ = grpc::ByteBuffer(&slice, 1);
  }

  grpc::ServerUnaryReactor* Call(grpc::CallbackServerContext* context, const grpc::ByteBuffer*, grpc::ByteBuffer* answer) override {
    *answer = answer_;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  grpc::ByteBuffer answer_;
};

int fail(const std::string& message) {
  std::cerr << message << std::endl;
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string api = argc == 3 ? argv[1] : "";
  if (api != "sync" && api != "callback") return fail("usage: echo_server sync|callback ANSWER_FILE");
  std::ifstream file(argv[2], std::ios::binary);
  if (!file) return fail(std::string("expected a file with the answer, got none at ") + argv[2]);
  const std::string answer((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());

  SyncEcho sync(answer);
  CallbackEcho callback(answer);
  if (!sync.is_good()) return fail(std::string("expected a serialized Body, got something else in ") + argv[2]);

  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  if (api == "sync") {
    builder.RegisterService(&sync);
  } else {
    builder.RegisterService(&callback);
  }
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server || port == 0) return fail("expected a free port on 127.0.0.1, got none");
  std::cout << "{\"port\": " << port << ", \"version\": \"" << grpc::Version() << "\"}" << std::endl;
  std::cin.ignore(std::numeric_limits<std::streamsize>::max());
  server->Shutdown();
}
