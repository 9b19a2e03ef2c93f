// The part of Android's API (level 35) that the written project uses, declared and not defined. Neither starting an activity
// for its result nor receiving it is deprecated here: androidx.activity's class of the same purpose deprecates its own.
package android.app;

import android.annotation.Nullable;
import android.content.Context;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;

public class Activity extends Context {
  public static final int RESULT_OK = -1;

  protected native void onCreate(@Nullable Bundle savedInstanceState);

  protected native void onActivityResult(int requestCode, int resultCode, Intent data);

  protected native void onDestroy();

  public native void setContentView(int layout);

  public native <T extends View> T findViewById(int id);

  public native void startActivityForResult(Intent intent, int requestCode);

  public final native void runOnUiThread(Runnable action);
}
