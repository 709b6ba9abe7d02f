// The part of the Objective-C runtime's interface that metal-cpp refers to.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

typedef struct objc_class* Class;
struct objc_object {
  Class isa;
};
typedef struct objc_object* id;
typedef struct objc_selector* SEL;
typedef struct objc_object Protocol;
typedef bool BOOL;

extern "C" {
Class objc_lookUpClass(const char* name);
Class objc_getClass(const char* name);
Class objc_getRequiredClass(const char* name);
Protocol* objc_getProtocol(const char* name);
SEL sel_registerName(const char* name);
const char* sel_getName(SEL selector);
Class object_getClass(id object);
const char* object_getClassName(id object);
bool class_respondsToSelector(Class cls, SEL selector);
const char* class_getName(Class cls);
}
