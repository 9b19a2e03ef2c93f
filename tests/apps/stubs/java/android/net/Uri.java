// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.net;

public abstract class Uri {
  private Uri() {}
}
