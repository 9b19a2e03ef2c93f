// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.view;

import android.annotation.Nullable;
import android.content.Context;

public class View {
  public interface OnClickListener {
    void onClick(View view);
  }

  public View(Context context) {}

  public native boolean isEnabled();

  public native void setEnabled(boolean enabled);

  public native void setOnClickListener(@Nullable OnClickListener listener);
}
