// The Objective-C runtime and Foundation, through metal-cpp.
#include "fixture.hpp"

using namespace tests;

TEST_CASE("objects are counted until the last release") {
  Fixture fixture;
  CHECK(software_metal_live_objects("MTLBuffer") == 0);
  auto buffer = fixture.buffer(64);
  CHECK(software_metal_live_objects("MTLBuffer") == 1);
  CHECK(buffer->retainCount() == 1);
  buffer->retain();
  CHECK(buffer->retainCount() == 2);
  buffer->release();
  buffer.reset();
  CHECK(software_metal_live_objects("MTLBuffer") == 0);
}

TEST_CASE("a retain without a release shows in the report") {
  Fixture fixture;
  MTL::Buffer* buffer = fixture.device->newBuffer(64, MTL::ResourceStorageModeShared);
  buffer->retain();
  buffer->release();
  CHECK_CONTAINS(software_metal_live_report(), "MTLBuffer 1");
  buffer->release();
}

TEST_CASE("an over-release is reported with the class") {
  Fixture fixture;
  MTL::Buffer* buffer = fixture.device->newBuffer(64, MTL::ResourceStorageModeShared);
  buffer->release();
  CHECK(fixture.take_violations() == "");
  buffer->release();
  CHECK(fixture.take_violations() == "message 'release' sent to a deallocated MTLBuffer");
}

TEST_CASE("a message to a deallocated object is reported and answers nothing") {
  Fixture fixture;
  MTL::CommandQueue* queue = fixture.device->newCommandQueue();
  queue->release();
  CHECK(queue->commandBuffer() == nullptr);
  CHECK(fixture.take_violations() ==
        "message 'commandBuffer' sent to a deallocated MTLCommandQueue");
}

TEST_CASE("an unknown method is reported") {
  Fixture fixture;
  CHECK(fixture.device->newHeap(nullptr) == nullptr);
  CHECK_CONTAINS(fixture.take_violations(), "-[MTLDevice newHeapWithDescriptor:]");
}

TEST_CASE("messages to nil answer zero") {
  Fixture fixture;
  MTL::CommandBuffer* volatile nil = nullptr;
  CHECK(nil->GPUStartTime() == 0.0);
  CHECK(nil->error() == nullptr);
  CHECK(nil->status() == 0);
}

TEST_CASE("struct and floating results come through objc_msgSend_stret and _fpret") {
  Fixture fixture;
  MTL::Size size = fixture.device->maxThreadsPerThreadgroup();
  CHECK(size.width == 1024);
  CHECK(size.height == 1024);
  CHECK(size.depth == 1024);
  CHECK(NS::Number::number(2.5)->doubleValue() == 2.5);
  CHECK(NS::Number::number(1.5f)->floatValue() == 1.5f);
  CHECK(NS::ProcessInfo::processInfo()->operatingSystemVersion().majorVersion == 15);
  CHECK(NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({14, 6, 1}));
  CHECK_FALSE(NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({15, 1, 0}));
}

TEST_CASE("autoreleased objects live until their pool goes") {
  Fixture fixture;
  long before = software_metal_live_objects("NSString");
  auto* pool = NS::AutoreleasePool::alloc()->init();
  str("a string");
  CHECK(software_metal_live_objects("NSString") == before + 1);
  pool->release();
  CHECK(software_metal_live_objects("NSString") == before);
}

TEST_CASE("strings") {
  Fixture fixture;
  NS::String* text = str("queue \xc3\xa4");
  CHECK(std::string(text->utf8String()) == "queue \xc3\xa4");
  CHECK(text->length() == 7);
  CHECK(text->lengthOfBytes(NS::UTF8StringEncoding) == 8);
  CHECK(text->isEqualToString(str("queue \xc3\xa4")));
  CHECK_FALSE(text->isEqualToString(str("other")));
  CHECK(text->hash() == str("queue \xc3\xa4")->hash());
  CHECK(std::string(text->stringByAppendingString(str("!"))->utf8String()) == "queue \xc3\xa4!");
}

TEST_CASE("arrays, dictionaries, numbers, errors, URLs") {
  Fixture fixture;
  const NS::Object* items[] = {str("a"), NS::Number::number(7)};
  NS::Array* array = NS::Array::array(items, 2);
  CHECK(array->count() == 2);
  CHECK(array->object<NS::Number>(1)->intValue() == 7);
  const NS::Object* keys[] = {str("first"), str("second")};
  NS::Dictionary* dictionary = NS::Dictionary::dictionary(items, keys, 2);
  CHECK(dictionary->object<NS::Number>(str("second"))->intValue() == 7);
  CHECK(dictionary->object(str("third")) == nullptr);
  NS::Error* error = NS::Error::error(str("domain"), 12, nullptr);
  CHECK(error->code() == 12);
  CHECK(std::string(error->domain()->utf8String()) == "domain");
  CHECK(std::string(NS::URL::fileURLWithPath(str("/a b/c"))->fileSystemRepresentation()) ==
        "/a b/c");
}

TEST_CASE("autorelease without a pool is reported") {
  software_metal_reset();
  software_metal_set_validation(SOFTWARE_METAL_RECORD);
  NS::String* leaked = str("nobody's");
  CHECK_CONTAINS(Fixture::take_violations(), "NSString autoreleased on a thread without");
  leaked->release();
}
