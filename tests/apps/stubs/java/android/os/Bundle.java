// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.os;

public final class Bundle {}
